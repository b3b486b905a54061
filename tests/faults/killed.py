"""One stage in a process of its own, which gets a signal in the middle of a write.

python -m tests.faults.killed STAGE OUTPUT WORLD BASE_URL CONFIGURATION WRITE SIGNAL
"""

import os
import signal
import sys
from pathlib import Path

from tests.faults.stages import STAGES, World, at_write, without_slow_parts


def main() -> int:
    name, output, folder, base_url, configuration, write, number = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
    stage = next(stage for stage in STAGES if stage.name == name)
    command = stage.arguments(World(Path(folder), base_url, Path(configuration)), Path(output))
    with without_slow_parts(), at_write(int(write), lambda: os.kill(os.getpid(), int(number))):
        code: int = stage.module.main(command)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
