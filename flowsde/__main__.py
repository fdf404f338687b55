"""``python -m flowsde``."""

from flowsde.cli import main

if __name__ == "__main__":
    main()
