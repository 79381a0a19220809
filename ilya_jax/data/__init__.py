"""Data: corpora, tokenizers, generated sources. Knows no model."""
