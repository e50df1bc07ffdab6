"""One module for each topic of ASIB's golden files."""
