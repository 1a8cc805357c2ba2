"""Where pictures come from: one module per value of `data.source`, imported by that name.

Each has `samples(config: DataConfig, seed: int) -> Iterator[Sample | Unreadable]`, a stream in a
fixed order; the caller cuts it at `config.count`. What cannot become a sample is yielded as an
Unreadable; a UserError ends the stream.
"""
