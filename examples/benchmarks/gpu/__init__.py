"""The first hour on a rented GPU: is the card well, are the numbers right, and how near is the speed to the card's?"""
