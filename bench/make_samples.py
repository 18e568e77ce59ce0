"""Write the two small sections that ship with the service: `python -m bench.make_samples`."""

from pathlib import Path

import click

from brenier.simulate import Section, simulate_sections


def sections() -> tuple[Section, Section]:
    """Simulate the shipped sections: every spot and gene passes the default filters."""
    return simulate_sections(spots=80, genes=60, depth=2000.0, seed=20)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path("schemas/sample"))
def main(folder: Path) -> None:
    """Write section_1.h5ad and section_2.h5ad into FOLDER."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, section in enumerate(sections(), start=1):
        path = folder / f"section_{number}.h5ad"
        section.write_h5ad(path)
        click.echo(f"{path}: {len(section.ids)} spots, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
