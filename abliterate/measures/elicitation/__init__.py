"""Whether a model knows the facts that it withholds: how likely it finds them beside matched false ones (docs/elicitation.md)."""
