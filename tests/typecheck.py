"""Annotations are checked while tests run: shapes by jaxtyping, the rest by beartype."""

from beartype import BeartypeConf, beartype

# A whole number will do where a real one is asked for.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
