"""`python -m labstudio`, which is also what torchrun starts."""

from labstudio.cli import main

if __name__ == "__main__":
    main()
