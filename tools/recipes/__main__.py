"""`python -m tools.recipes`: writes params/METHOD_FAMILY.yaml of every method and family."""

from tools.recipes import PARAMS, recipes

for name, text in recipes().items():
    (PARAMS / name).write_text(text)
