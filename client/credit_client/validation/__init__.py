"""Model validation at the holder: how a release does on the merchant's own users.

All tables are exact counts of the merchant's own data, and stay with the merchant.
"""
