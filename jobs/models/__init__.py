"""Language models: found, checked, loaded, spread over devices."""
