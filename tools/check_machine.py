"""Check the requirements of `make install` before it starts. Runs on any Python 3."""

import os
import shutil
import sys

NEEDED_GIB = 8  # torch with the CUDA libraries, and pip's downloads
NEEDED_GIB_CPU = 4  # torch without them


def problems(folder, needed=NEEDED_GIB):
    """Return the unmet requirements, one message each with the fix; `needed`: GiB of disk space."""
    messages = []
    if sys.version_info < (3, 11):
        version = ".".join(map(str, sys.version_info[:3]))
        messages.append(
            "Python 3.11 or newer is needed, but {0} is {1}. Install one and pass it: "
            "make install PYTHON=python3.12".format(sys.executable, version)
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        messages.append(
            "this Python cannot create virtual environments. On Debian and Ubuntu: "
            "apt install python3-venv"
        )
    if not os.access(folder, os.W_OK):
        messages.append(
            "{0} is not writable. Copy the checkout to a writable folder".format(folder)
        )
    free = shutil.disk_usage(folder).free / 2.0**30
    has_environment = os.path.isdir(os.path.join(folder, ".venv", "lib"))
    if free < needed and not has_environment:
        messages.append(
            "{0:.1f} GiB are free in {1}, but about {2} are needed{3}. Free some space, or clone "
            "to a larger disk".format(
                free,
                folder,
                needed,
                " ({0} with CPU=1)".format(NEEDED_GIB_CPU) if needed > NEEDED_GIB_CPU else "",
            )
        )
    return messages


def main():
    """Print the unmet requirements; return 2 if there are any."""
    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    messages = problems(folder, NEEDED_GIB_CPU if "--cpu" in sys.argv[1:] else NEEDED_GIB)
    for message in messages:
        sys.stderr.write("make install: {0}\n".format(message))
    return 2 if messages else 0


if __name__ == "__main__":
    sys.exit(main())
