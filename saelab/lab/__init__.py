"""The Lab: one session over a subject, SAEs and their feature stores. Every view starts here."""

from saelab.lab.session import Lab as Lab
