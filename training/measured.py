"""Runs a command and writes what it took: exit code, wall seconds, peak memory of that one process and its children.

    python training/measured.py usage.json COMMAND …

A small process of its own, because Linux counts the memory of whoever starts a process into its peak: started from a
script that holds a gigabyte, even an empty program reports a gigabyte.
"""

import json
import os
import signal
import subprocess
import sys
import time


def main(target: str, *command: str) -> int:
    began, clock = time.time(), time.perf_counter()
    process = subprocess.Popen(command)
    signal.signal(signal.SIGTERM, lambda number, frame: process.send_signal(number))  # it may want to end well
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    report = {
        "exit_code": process.returncode,
        "began": began,
        "seconds": time.perf_counter() - clock,
        "peak_mib": usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10),  # bytes there, kilobytes here
    }
    with open(f"{target}.part", "w", encoding="utf-8") as file:
        json.dump(report, file)
    os.replace(f"{target}.part", target)
    return process.returncode


if __name__ == "__main__":
    sys.exit(min(abs(main(*sys.argv[1:])), 255))  # the sign of "ended by a signal" is in the report
