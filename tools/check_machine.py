"""Check the requirements of `make install` before it starts. Runs on any Python 3."""

import os
import shutil
import sys

NEEDED_GIB = 8  # torch with its libraries, and pip's downloads


def problems(folder):
    """Return the unmet requirements, one message each with the fix."""
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
    if free < NEEDED_GIB and not has_environment:
        messages.append(
            "{0:.1f} GiB are free in {1}, but about {2} are needed. Free some space, or clone to "
            "a larger disk".format(free, folder, NEEDED_GIB)
        )
    return messages


def main():
    """Print the unmet requirements; return 2 if there are any."""
    messages = problems(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    for message in messages:
        sys.stderr.write("make install: {0}\n".format(message))
    return 2 if messages else 0


if __name__ == "__main__":
    sys.exit(main())
