"""SIMULATED shoppers of several merchants: no row of this package's data is about a real person.

No public set has together what the model reads: purchases, page visits with dwell times, social
links, product and review text, and a default label. `shops.simulate_shops` makes such rows for a
known probability of default, so that a result has a best possible one to be held against.

    completejourney  the real statistics that are imitated, and how they are measured
    merchants        sizes, prices, departments and writing styles that differ
    shoppers         latent people, their true PD and its parts
    links            who knows whom, and what a merchant sees of it
    histories        purchases, visits with dwell times and returns
    words            product titles and reviews
    shops            one row per user and merchant, out of all of these
    best             the AUC that nobody beats in expectation

Which words, hours or payment methods carry risk here is made up. Nothing about people follows.
"""
