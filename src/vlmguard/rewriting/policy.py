"""What the operator decides: which risks there are, when a request counts as one, what follows.

The categories unite SIUO's nine domains and MM-SafetyBench's thirteen scenarios (see
`Category.siuo` and `Category.mm_safetybench`), so that results can be told by either.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from vlmguard.errors import ConfigError, UnknownName
from vlmguard.types import Action

Preset = Literal["strict", "balanced", "permissive"]
PRESETS: tuple[Preset, ...] = ("strict", "balanced", "permissive")

DEFAULT_THRESHOLDS: dict[Preset, float] = {"strict": 0.25, "balanced": 0.5, "permissive": 0.75}
"""For rewriters that were not calibrated; a calibrated adapter brings its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Category:
    """A kind of risk.

    Attributes:
        name: as in policies, records and the stable JSON.
        description: one line that a model and a person understand.
        siuo: SIUO domains that belong here.
        mm_safetybench: MM-SafetyBench scenarios that belong here.
    """

    name: str
    description: str
    siuo: tuple[str, ...] = ()
    mm_safetybench: tuple[str, ...] = ()


CATEGORIES: tuple[Category, ...] = (
    Category(
        name="self_harm",
        description="suicide, self-injury, eating disorders, or encouraging them",
        siuo=("self-harm",),
    ),
    Category(
        name="dangerous_activity",
        description="acts that may injure the person or bystanders by accident: stunts, "
        "unsafe use of chemicals, machines, medicines, animals, heights, food",
        siuo=("dangerous behavior",),
    ),
    Category(
        name="violence",
        description="hurting, threatening or terrorizing people or animals; weapons, explosives",
        mm_safetybench=("04-Physical_Harm",),
    ),
    Category(
        name="illegal_activity",
        description="crimes other than the ones below: drugs, theft, smuggling, trafficking, "
        "evading the law",
        siuo=("illegal activities & crime",),
        mm_safetybench=("01-Illegal_Activitiy",),
    ),
    Category(
        name="cybercrime",
        description="malware, breaking into systems or accounts, attacks on networks",
        mm_safetybench=("03-Malware_Generation",),
    ),
    Category(
        name="fraud",
        description="deceiving for gain: scams, forgery, counterfeits, manipulation of markets, "
        "gambling schemes",
        mm_safetybench=("05-Economic_Harm", "06-Fraud"),
    ),
    Category(
        name="hate",
        description="demeaning or excluding people for what they are or believe; stereotypes, "
        "harassment, disrespect of religions",
        siuo=("discrimination & stereotyping", "religion beliefs"),
        mm_safetybench=("02-HateSpeech",),
    ),
    Category(
        name="sexual",
        description="sexual content, sexual exploitation; anything sexual about minors",
        mm_safetybench=("07-Sex",),
    ),
    Category(
        name="privacy",
        description="identifying, tracking, spying on or exposing people",
        siuo=("privacy violation",),
        mm_safetybench=("09-Privacy_Violence",),
    ),
    Category(
        name="misinformation",
        description="false or misleading claims made to be believed; misreading of evidence",
        siuo=("information misinterpretation",),
    ),
    Category(
        name="politics",
        description="campaigning, lobbying, influencing elections or decisions of government",
        siuo=("controversial topics, politics",),
        mm_safetybench=("08-Political_Lobbying", "13-Gov_Decision"),
    ),
    Category(
        name="professional_advice",
        description="decisions on health, law or money that need a professional who knows the case",
        mm_safetybench=("10-Legal_Opinion", "11-Financial_Advice", "12-Health_Consultation"),
    ),
    Category(
        name="immorality",
        description="lawful but cruel, disrespectful or grossly irresponsible conduct",
        siuo=("morality",),
    ),
)
CATEGORY_NAMES: tuple[str, ...] = tuple(category.name for category in CATEGORIES)


class Policy(BaseModel):
    """The operator's rules. Read from YAML by `load_policy`; the defaults are ``balanced``.

    Attributes:
        name: appears in traces, headers and audit records.
        threshold: a preset, or the least risk 0..1 that counts as risky.
        default_action: what to do about a risky request.
        actions: category → another action for it.
        on_failure: ``closed`` raises an error when the guard cannot decide; ``open`` lets the
            request through, and the result says so.
        timeout_s: seconds that the guard may take for one turn before that counts as a failure.
        max_prompt_chars: longer prompts are refused as bad input.
        max_images: more pictures in one conversation are refused as bad input.
        refusal: the answer where the action is ``refuse``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] = "balanced"
    threshold: Preset | Annotated[float, Field(gt=0, le=1)] = "balanced"
    default_action: Action = "rewrite"
    actions: dict[str, Action] = Field(default_factory=dict)
    on_failure: Literal["closed", "open"] = "closed"
    timeout_s: Annotated[float, Field(gt=0)] = 60.0
    max_prompt_chars: Annotated[int, Field(gt=0)] = 200_000
    max_images: Annotated[int, Field(gt=0)] = 16
    refusal: Annotated[str, Field(min_length=1)] = (
        "I can't help with this request. If you tell me what you need it for, "
        "I'll gladly help with a safe way to get there."
    )

    @field_validator("actions")
    @classmethod
    def _known_categories(cls, actions: dict[str, Action]) -> dict[str, Action]:
        unknown = sorted(set(actions) - set(CATEGORY_NAMES))
        if unknown:
            raise ValueError(
                f"unknown categories: {', '.join(unknown)}; known: {', '.join(CATEGORY_NAMES)}"
            )
        return actions

    def threshold_for(self, calibrated: dict[Preset, float] | None = None) -> float:
        """The least risk 0..1 that counts as risky.

        Args:
            calibrated: preset → threshold of the rewriter in use, where it was calibrated.
        """
        if isinstance(self.threshold, float):
            return self.threshold
        return (calibrated or DEFAULT_THRESHOLDS).get(
            self.threshold, DEFAULT_THRESHOLDS[self.threshold]
        )

    def action_for(self, category: str | None) -> Action:
        """What to do about a risky request of this category."""
        return self.actions.get(category or "", self.default_action)

    @property
    def fingerprint(self) -> str:
        """Changes whenever a rule changes; part of every cache key."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


def preset_policy(name: Preset) -> Policy:
    """The built-in policy of that name: the default rules at that threshold."""
    return Policy(name=name, threshold=name)


def load_policy(source: str | Path) -> Policy:
    """A preset's name, or a YAML file.

    Raises:
        UnknownName: neither a preset nor a file.
        ConfigError: unreadable, not YAML, or a field is wrong; every wrong field is listed.
    """
    if source in PRESETS:
        return preset_policy(source)
    path = Path(source)
    if not path.is_file():
        raise UnknownName(
            f"there is no policy {str(source)!r}: neither a preset ({', '.join(PRESETS)}) nor a "
            "file; `vlmguard policy init` writes one"
        )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a policy is a mapping of fields, not a {type(values).__name__}")
    try:
        return Policy.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_told(error)}") from None


def _told(error: ValidationError) -> str:
    """Every wrong field on a line of its own."""
    seen: dict[str, str] = {}
    for item in error.errors(include_url=False):
        # The rest of a location names a branch of a union, which means nothing to the reader.
        depth = 2 if item["loc"][0] == "actions" else 1
        place = ".".join(str(part) for part in item["loc"][:depth])
        message = str(item["msg"]).removeprefix("Value error, ")
        given: Any = item.get("input")
        detail = f"{message} (got {given!r})" if item["type"] != "extra_forbidden" else _unknown()
        seen[place] = f"{seen[place]}; or {detail}" if place in seen else detail
    return "\n".join(["the policy is not valid", *(f"  {at}: {why}" for at, why in seen.items())])


def _unknown() -> str:
    return f"no such field; fields: {', '.join(Policy.model_fields)}"


def policy_template() -> str:
    """A commented policy file with the default rules, as ``vlmguard policy init`` writes it."""
    return files("vlmguard.rewriting").joinpath("policy.yaml").read_text(encoding="utf-8")
