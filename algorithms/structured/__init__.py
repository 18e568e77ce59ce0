"""Maps between spaces that share no coordinates, learnt while their points are matched."""
