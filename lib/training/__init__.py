"""How networks are trained and scored, the same way in every chapter."""
