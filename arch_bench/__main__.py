"""`python -m arch_bench`."""

from arch_bench.cli import main

if __name__ == "__main__":
    main()
