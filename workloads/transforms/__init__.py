"""The primitives of which methods are composed, one module a family; `registry` lists them, `compose` applies them."""
