"""minilib: backdoors in neural networks, how to find them and how to unlearn them."""

import time as _time

__version__ = "0.1.0"

started: float | None = None  # set by hello(); a run record measures its seconds from here


def hello() -> None:
    """Print device and versions, and start the clock of this run.

    Called by the first cell of every chapter, so that each published page says what it ran on.
    """
    global started
    started = _time.perf_counter()
    import platform
    import warnings

    # tqdm's complaint about missing widgets, which some dependency provokes on import
    warnings.filterwarnings("ignore", message="IProgress not found")

    import torch
    import transformers

    from .models import default_device

    device = default_device()
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine() + " CPU"
    print(
        f"minilib {__version__} | {device.type}: {name} | Python {platform.python_version()} | "
        f"torch {torch.__version__} | transformers {transformers.__version__}"
    )
