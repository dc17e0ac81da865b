"""Questions to SAEs of image models, which any subject whose corpus has documents can be asked as well."""
