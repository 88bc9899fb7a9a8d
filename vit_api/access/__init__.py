"""Who a client is, and how much it may use: keys, addresses, rates and what is used up."""
