"""Images from models: any model of the chain, any number of steps, keyed noise."""
