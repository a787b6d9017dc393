"""Keep libraries' own chatter off the terminal; what matters is said in our words."""

from __future__ import annotations

import logging
import os
import warnings


def quiet_libraries() -> None:
    """Silence notes that libraries print at import and while loading. Call before importing them."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # Deprecations inside one library about another are for their authors, not for a user.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    for name in ("bitsandbytes", "peft", "huggingface_hub", "httpx", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
