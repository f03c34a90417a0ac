"""The pieces of work that studies of language models share: proxies, trained arms, pools of reference responses."""
