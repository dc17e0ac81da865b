"""SAEs against dictionaries that are made of known attributes (Makelov, Lange & Nanda, arXiv 2405.08366)."""
