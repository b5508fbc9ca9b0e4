"""`python -m eao` is the command `eao`."""

from eao.cli import main

if __name__ == "__main__":
    main()
