"""The method: models, metrics, quantisers, data sets and the claim ledger that the chapters share."""
