#!/usr/bin/env bash
# The paper's rewriter: synthesis, training, evaluation.
# Nobody has run this script to its end: it needs what the next lines say.
#
# It needs two servers that speak OpenAI's API (vLLM, for instance), the sources and benchmarks
# below, and eight GPUs with 80 GB for the training. Every step goes on where it was stopped.
#
#   REASONER  InternVL2.5-38B: analyses, rewrites, grades      (the paper's)
#   TARGET    the model that rewrites are tried on in synthesis
set -euo pipefail
cd "$(dirname "$0")/.."

REASONER=${REASONER:-"openai:OpenGVLab/InternVL2_5-38B@http://localhost:8000/v1"}
TARGET=${TARGET:-"openai:Qwen/Qwen2-VL-7B-Instruct@http://localhost:8001/v1"}
SOURCES=${SOURCES:-sources}        # VLGuard, SPA-VL and VLSBench, as their authors publish them
BENCHMARKS=${BENCHMARKS:-benchmarks-data}
DATA=runs/synthesis
RUN=runs/qwen2-vl-7b-full

# 1. About ten thousand verified records, a tenth of them harmless, from the paper's three sources.
vlmguard synth run \
  --source "vlguard:$SOURCES/vlguard/train.json" \
  --source "spa-vl:$SOURCES/spa-vl" \
  --source "vlsbench:$SOURCES/vlsbench/data.json" \
  --reasoner "$REASONER" --target "$TARGET" \
  --benign-share 0.099 --concurrency 64 --out "$DATA"

# 2. Nothing that is tested on may have been trained on.
vlmguard data check "$DATA"
vlmguard data decontaminate "$DATA" --against "$BENCHMARKS"

# 3. The rewriter.
resume=()
if [[ -e $RUN/recipe.yaml ]]; then resume=(--resume); fi
accelerate launch --config_file recipes/accelerate/zero3.yaml \
  -m vlmguard.cli.main train recipes/qwen2-vl-7b-full.yaml --out "$RUN" "${resume[@]}"

# 4. Its targets, benchmarks and baselines, with this rewriter behind the guard, once it is served:
#
#   vllm serve "$RUN/adapter" --served-model-name vlmguard-r1 --port 8010
#
# The recipe names the servers of the targets; --dry-run tells what it will take.
GUARD="guard:openai:vlmguard-r1@http://localhost:8010/v1?trained=$RUN/adapter"
for dry in --dry-run ""; do
  # shellcheck disable=SC2086  # no argument at all, not an empty one
  vlmguard eval recipes/eval_paper.yaml --data "$BENCHMARKS" --out runs/eval-paper \
    --defence "none,self-reminder,figstep-prompt,adashield-s,ecso,$GUARD" $dry
done
