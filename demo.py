"""Talk about an X-ray in a browser; see xraygpt/demo/launch.py."""

import sys

from xraygpt.common.cli import guarded
from xraygpt.demo.launch import main

if __name__ == "__main__":
    sys.exit(guarded(main))
