"""The command `arch-bench`, and `python -m arch_bench`."""

from arch_bench.runtime import module_path


def main() -> None:
    """Run the command line."""
    module_path.settle()  # first: the working directory, which `-m` puts first, may hide the command line's imports
    from arch_bench import cli

    cli.main()


if __name__ == "__main__":
    main()
