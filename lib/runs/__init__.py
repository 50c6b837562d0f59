"""One run of one chapter, and many: parameters, identity, execution, the batch."""
