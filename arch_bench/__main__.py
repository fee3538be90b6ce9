"""The command `arch-bench`, and `python -m arch_bench`."""

from arch_bench.runtime import module_path


def main() -> None:
    """Run the command line."""
    module_path.settle()  # first: what the command line imports may be in the working directory, which `-m` puts first
    from arch_bench import cli

    cli.main()


if __name__ == "__main__":
    main()
