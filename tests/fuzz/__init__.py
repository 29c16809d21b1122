"""Random calls of every operator, valid and broken: none may crash, and what is served is what `ref` gives."""
