"""A miniature of FastDeploy's vendor: a base image of the same shape, an index with the other build's wheel, and models on a loopback hub.

`package/` is the `fastdeploy` that both builds hold; `builds` makes a wheel and an installed tree of it, `index` serves wheels, `vendor`
puts it all into a registry and writes the table of releases that leads there.
"""
