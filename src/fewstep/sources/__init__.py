"""Where images come from: one package per value of `data.source`, imported by that name.

Each has

- `units(config: DataConfig, seed: int) -> Iterator[Unit]`, the parts of the source in a fixed order, from
  names and tables alone; a UserError ends it;
- `read(unit: Unit, config: DataConfig, seed: int) -> Iterator[Sample | Unreadable | Skipped]`, the entries of
  one unit in a fixed order, in any process. Entries that cannot become samples are yielded as Unreadable,
  those that were not meant as samples as Skipped;
- `samples(config: DataConfig, seed: int) -> Iterator[Sample | Unreadable | Skipped]`, the entries of all
  units; the caller cuts it at `config.count`. A UserError ends the stream;
- `expected(config) -> str`, what a source of this kind holds, for the error where nothing is there;
- `inputs(config) -> list[Path]`, the files and folders outside the project that it reads, whether they
  exist or not;
- `count(config) -> int | None`, the approximate number of images, from names alone; None where they must be
  read to be counted.
"""
