"""`python -m stabn.cli`, what torchrun starts."""

from stabn.cli import main

if __name__ == "__main__":
    main()
