"""The playground: a page that shows the guard at work. Needs the extra ``ui``.

`vlmguard.ui.app.mount` adds it to an ASGI application, `vlmguard.ui.app.serve` runs it alone.
"""

from __future__ import annotations

import os

# Gradio reads this when it is imported: the page asks nobody outside anything.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
