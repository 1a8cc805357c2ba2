"""Where images come from: one package per value of `data.source`, imported by that name.

Each has

- `samples(config: DataConfig, seed: int) -> Iterator[Sample | Unreadable | Skipped]`, a stream in a fixed
  order; the caller cuts it at `config.count`. Entries that cannot become samples are yielded as
  Unreadable, those that were not meant as samples as Skipped; a UserError ends the stream.
- `inputs(config) -> list[Path]`, the files and folders outside the project that it reads, whether they
  exist or not;
- `count(config) -> int | None`, the approximate number of images, from names alone; None where they must be
  read to be counted.
"""
