"""Model architectures as facts: parameter counts, weight bytes and KV bytes per token.

Dense, mixture of experts, latent attention (MLA), sliding windows, indexers, layers with constant state.
Public models are in `data/*.yaml`; any Hugging Face `config.json` works too, and `sized:8b` for a size alone.
May import: errors, units, specs.
Start at `spec.py` (`Model`); `catalogue.py` finds one by name, `hf_config.py` reads one from a config.
"""

from headway.model.catalogue import model, model_keys
from headway.model.hf_config import from_hf_config
from headway.model.spec import DTYPE_BYTES, FILE_DTYPES, Model

__all__ = ["DTYPE_BYTES", "FILE_DTYPES", "Model", "from_hf_config", "model", "model_keys"]
