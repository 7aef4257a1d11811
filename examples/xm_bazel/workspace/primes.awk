# Print the primes below 20000.
BEGIN {
    for (n = 2; n < 20000; n++) {
        for (divisor = 2; divisor * divisor <= n && n % divisor; divisor++);
        if (divisor * divisor > n)
            print n
    }
}
