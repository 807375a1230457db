/* cuRAND: only its name is needed. */
int curand_of_the_fake_cuda;
