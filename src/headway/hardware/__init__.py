"""Hardware facts: GPUs, nodes and links, read from data files where each number carries its source and kind.

What lives here: `Gpu`, `Node`, `Link` (`facts.py`), lookup (`catalogue.py`, `files.py`), the numbers (`data/*.yaml`).
May import: errors, units, specs.
Start reading at `facts.py` for what each number means; to add a GPU, add an entry to a data file.
"""

from headway.hardware.catalogue import gpu, gpu_keys, gpus_named, node, nodes, silicon
from headway.hardware.facts import Gpu, Link, Node, Source
from headway.hardware.files import is_file

__all__ = ["Gpu", "Link", "Node", "Source", "gpu", "gpu_keys", "gpus_named", "is_file", "node", "nodes", "silicon"]
