"""``python -m flowsde``."""

from flowsde.cli.main import main

if __name__ == "__main__":
    main()
