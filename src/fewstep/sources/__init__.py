"""Where images come from: one package per value of `data.source`, imported by that name.

Each has

- `samples(config: DataConfig, seed: int) -> Iterator[Sample | Unreadable | Skipped]`, a stream in a fixed
  order; the caller cuts it at `config.count`. What cannot become a sample is yielded as an Unreadable, what
  was not meant as one as a Skipped; a UserError ends the stream.
- `inputs(config) -> list[Path]`, the files and folders outside the project that it reads, there or not;
- `count(config) -> int | None`, about how many images there are, by names alone; None where that takes
  reading.
"""
