"""Say what stands in the way of `make install`, before it starts. Runs on any Python 3."""

import os
import shutil
import sys

NEEDED_GIB = 8  # torch with its libraries, and pip's downloads beside them


def problems(folder):
    """What is wrong with this machine, one sentence each, with the way out."""
    found = []
    if sys.version_info < (3, 11):
        have = ".".join(map(str, sys.version_info[:3]))
        found.append(
            "Python 3.11 or newer is needed, {0} is {1}. Install one and name it: "
            "make install PYTHON=python3.12".format(sys.executable, have)
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        found.append(
            "this Python cannot make virtual environments. On Debian and Ubuntu: "
            "apt install python3-venv"
        )
    if not os.access(folder, os.W_OK):
        found.append(
            "{0} cannot be written. Copy the checkout to a folder of your own".format(folder)
        )
    free = shutil.disk_usage(folder).free / 2.0**30
    has_environment = os.path.isdir(os.path.join(folder, ".venv", "lib"))
    if free < NEEDED_GIB and not has_environment:
        found.append(
            "{0:.1f} GiB are free in {1}, about {2} are needed. Make room, or clone to a "
            "larger disk".format(free, folder, NEEDED_GIB)
        )
    return found


def main():
    """Print them; 2 if there are any."""
    found = problems(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    for one in found:
        sys.stderr.write("make install: {0}\n".format(one))
    return 2 if found else 0


if __name__ == "__main__":
    sys.exit(main())
