"""Chat about an X-ray in a browser; see xraygpt/demo/launch.py."""

import sys

from xraygpt.common.cli import run_main
from xraygpt.demo.launch import main

if __name__ == "__main__":
    sys.exit(run_main(main))
