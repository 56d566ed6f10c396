"""The mathematics of gradient rows and quanta: arrays in, arrays out. No files, no Ray, no HTTP."""
