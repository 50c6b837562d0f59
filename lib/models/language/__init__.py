"""Networks of language: an LSTM language model, a translator."""
