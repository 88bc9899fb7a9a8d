"""Client identification and rate-limit accounting: keys, addresses, rates and counts. Pure policy, without HTTP."""
