"""A program in a process of its own, for what JAX is told before it starts."""

import os
import subprocess
import sys
from pathlib import Path

TWO_DEVICES = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}


def in_a_new_process(code, **environment):
    """What `code` prints where only the host's CPU is used."""
    given = (
        dict(os.environ)
        | {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        | environment
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, env=given)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
